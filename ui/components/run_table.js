element.addEventListener('click', event => {
  const button = event.target.closest('[data-edit]');
  if (button) window.studioEditRun(button); // run_editor.js
});
// The menu that sorts on a phone.
element.addEventListener('change', event => {
  if (!event.target.matches('.sort-menu select')) return;
  window.studioPressed = {do: 'sort', key: event.target.value};
  trigger('sort', window.studioPressed);
});

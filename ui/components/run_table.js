element.addEventListener('click', event => {
  const button = event.target.closest('[data-edit]');
  if (button) window.studioEditRun(button); // run_editor.js
});

// A small form in a panel: triggers "edit" shortly after the last change; choices.js reads it.
let timer = 0;
element.addEventListener('input', event => {
  const field = event.target.closest('[name]');
  if (!field) return;
  const output = field.parentElement.querySelector('output');
  if (output) output.textContent = field.value;
  clearTimeout(timer);
  timer = setTimeout(() => trigger('edit'), field.type === 'range' ? 120 : 0);
});

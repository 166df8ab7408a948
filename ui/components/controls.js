// A small form in a panel: says that something was moved or chosen in it, a moment after the last move; choices.js reads what.
let soon = 0;
element.addEventListener('input', event => {
  const field = event.target.closest('[name]');
  if (!field) return;
  const number = field.parentElement.querySelector('output');
  if (number) number.textContent = field.value;
  clearTimeout(soon);
  soon = setTimeout(() => trigger('say'), field.type === 'range' ? 120 : 0);
});

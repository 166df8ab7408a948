// A small form in a panel: whatever is moved or chosen in it is told as a whole, {say: {name: value, …}}, a moment after the last move.
let soon = 0;
function said() {
  const values = {};
  for (const field of element.querySelectorAll('[name]')) {
    if (field.type === 'radio') { if (field.checked) values[field.name] = field.value; }
    else values[field.name] = field.type === 'checkbox' ? field.checked : field.value;
  }
  return values;
}
element.addEventListener('input', event => {
  const field = event.target.closest('[name]');
  if (!field) return;
  const number = field.parentElement.querySelector('output');
  if (number) number.textContent = field.value;
  clearTimeout(soon);
  soon = setTimeout(() => trigger('say', {say: said()}), field.type === 'range' ? 120 : 0);
});

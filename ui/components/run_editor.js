// Name, tags and note of a run, in a small form over its row. The table is redrawn while a run goes,
// so the form stands outside of it.
const form = element.querySelector('form');
window.studioEditRun = button => {
  const {edit, name, tags, note} = button.dataset;
  for (const [field, value] of Object.entries({run: edit, name, tags, note})) {
    form.elements[field].value = value;
  }
  form.showPopover({source: button});
  const cell = button.closest('td').getBoundingClientRect();
  const table = button.closest('.scroll').getBoundingClientRect(); // the form keeps inside of it
  form.style.width = `${Math.min(340, table.width)}px`;
  const left = Math.max(table.left, Math.min(cell.left, table.right - form.offsetWidth));
  const top = Math.max(8, Math.min(cell.top, innerHeight - form.offsetHeight - 8));
  form.style.left = `${left + scrollX}px`;
  form.style.top = `${top + scrollY}px`;
  form.elements.name.focus();
  form.elements.name.select();
};
form.addEventListener('submit', event => {
  event.preventDefault();
  form.hidePopover();
  trigger('save', Object.fromEntries(new FormData(form)));
});

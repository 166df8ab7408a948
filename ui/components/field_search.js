// Searches the names and helps of the algorithm's fields. A search also finds fields that the
// present choice does not use.
const box = element.querySelector('input'), said = element.querySelector('[role=status]');
function search() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const field of document.querySelectorAll('#algorithm-fields > .field')) {
    const fits = words.every(word => field.textContent.toLowerCase().includes(word));
    field.dataset.found = words.length ? (fits ? 'yes' : 'no') : '';
    found += fits;
  }
  said.textContent = !words.length ? '' : found === 1 ? '1 field' : `${found} fields`;
}
box.addEventListener('input', search);
window.studioToggles();

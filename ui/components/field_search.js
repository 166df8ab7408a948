// Searches the texts of the items that the search field's data-among selects. In the set-up a
// search also finds fields that the present choice does not use.
const box = element.querySelector('input'), said = element.querySelector('[role=status]');
const [one, several] = box.dataset.noun.split(' ');
function search() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const item of document.querySelectorAll(box.dataset.among)) {
    const fits = words.every(word => item.textContent.toLowerCase().includes(word));
    item.dataset.found = words.length ? (fits ? 'yes' : 'no') : '';
    found += fits;
  }
  said.textContent = !words.length ? '' : found === 1 ? `1 ${one}` : `${found} ${several}`;
}
box.addEventListener('input', search);
window.studioToggles();

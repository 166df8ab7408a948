// The left and right arrow keys open the previous and next group while the focus is in the group,
// but not in a text that scrolls or in an input.
element.addEventListener('keydown', event => {
  const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.closest('pre, input, .turns')) return;
  event.preventDefault();
  element.querySelector(`[data-do=walk][data-by='${by}']`)?.click();
});
// A press on a card, or Enter, puts the card's own arithmetic into the formula line.
function choose(card) {
  for (const other of element.querySelectorAll('[data-card]')) {
    if (other === card) other.setAttribute('aria-current', 'true');
    else other.removeAttribute('aria-current');
  }
  const line = element.querySelector('.formula-inline');
  const mine = card.querySelector('.mine').cloneNode(true);
  line.replaceChildren(...mine.childNodes);
}
element.addEventListener('click', event => {
  const card = event.target.closest('[data-card]');
  if (card && !String(window.getSelection())) choose(card); // a person may select text to copy it
});
element.addEventListener('keydown', event => {
  if ((event.key !== 'Enter' && event.key !== ' ') || !event.target.matches('[data-card]')) return;
  event.preventDefault();
  choose(event.target);
});
// A refresh replaces the attributes of toggle buttons; their state is kept on the page's root.
watch('value', () => window.studioToggles?.());

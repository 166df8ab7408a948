// Shows the numbers of one token in the line below the text: the token under the pointer, tapped,
// or reached with the arrow keys.
let current = null;
function show(token) {
  const line = element.querySelector('.token-says');
  if (!token || !line) return;
  current?.classList.remove('here');
  current = token;
  token.classList.add('here');
  line.textContent = token.dataset.says;
}
element.addEventListener('pointerover', event => show(event.target.closest('.tok')));
element.addEventListener('click', event => show(event.target.closest('.tok')));
element.addEventListener('keydown', event => {
  if (!event.target.closest('.tokens')) return;
  const all = [...element.querySelectorAll('.tok')];
  const at = all.indexOf(current), last = all.length - 1;
  const next = {
    ArrowLeft: Math.max(0, at - 1), ArrowRight: Math.min(last, at + 1), Home: 0, End: last,
  }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  show(all[next]);
  current?.scrollIntoView({block: 'nearest'});
});

// The numbers of the token under the pointer, tapped, or walked to with the arrow keys, in the line below the text.
let here = null;
function say(token) {
  const line = element.querySelector('.token-says');
  if (!token || !line) return;
  here?.classList.remove('here');
  here = token;
  token.classList.add('here');
  line.textContent = token.dataset.says;
}
element.addEventListener('pointerover', event => say(event.target.closest('.tok')));
element.addEventListener('click', event => say(event.target.closest('.tok')));
element.addEventListener('keydown', event => {
  if (!event.target.closest('.tokens') || !['ArrowLeft', 'ArrowRight', 'Home', 'End'].includes(event.key)) return;
  event.preventDefault();
  event.stopPropagation();
  const all = [...element.querySelectorAll('.tok')];
  const at = all.indexOf(here);
  say(event.key === 'Home' ? all[0] : event.key === 'End' ? all.at(-1) : all[Math.min(all.length - 1, Math.max(0, at + (event.key === 'ArrowLeft' ? -1 : 1)))]);
  here?.scrollIntoView({block: 'nearest'});
});

// Judging pairs from the keyboard, and ranking a group by dragging and by keys. All verdicts go
// through the panel's buttons.
let shownAt = performance.now(), busy = 0;
const root = () => element.querySelector('.pair');
const isShown = () => element.isConnected && element.offsetParent !== null && !document.hidden;
const isBusy = () => performance.now() < busy;

// ---- verdicts ----
// Before the panel reports a press: how long it took, and in which order a ranking stands.
element.addEventListener('click', event => {
  const button = event.target.closest('[data-do]');
  if (!button) return;
  if (isBusy()) return event.stopImmediatePropagation();
  busy = performance.now() + 1500; // until the next pair is here; see watch
  button.dataset.seconds = ((performance.now() - shownAt) / 1000).toFixed(2);
  if (button.dataset.do === 'rank') {
    button.dataset.order = [...element.querySelectorAll('.ranking > li')].map(li => li.dataset.at);
  }
}, true);

function onKey(event) {
  if (!element.isConnected) return document.removeEventListener('keydown', onKey);
  const target = event.target;
  const isInside = target === document.body || element.contains(target);
  if (!isShown() || !isInside || event.altKey || event.shiftKey || event.metaKey) return;
  // In the turns of an answer this key scrolls.
  if (event.key === 'ArrowDown' && target.closest('.turns')) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const press = event.ctrlKey ? {z: '[data-do=undo]'}[key] : {
    ArrowLeft: '[data-verdict=left]', ArrowRight: '[data-verdict=right]',
    ArrowDown: '[data-verdict=tie]', s: '[data-verdict=skip]', u: '[data-do=undo]',
  }[key];
  const button = press && element.querySelector(press);
  if (!button) return;
  event.preventDefault();
  if (!event.repeat) button.click(); // a key that is held down judges one pair
}
document.addEventListener('keydown', onKey);

watch('value', () => {
  busy = 0;
  shownAt = performance.now();
  // The pressed button is gone, and with it the focus.
  requestAnimationFrame(() => {
    if (isShown() && document.activeElement === document.body) root()?.focus({preventScroll: true});
  });
});

// ---- ranking ----
function move(item, before) {
  const list = item.parentElement, isFocused = item.contains(document.activeElement);
  const focused = isFocused ? document.activeElement : null;
  list.insertBefore(item, before);
  focused?.focus();
  const places = [...list.children], place = places.indexOf(item) + 1;
  const said = element.querySelector('.pair-title span');
  said.textContent = `Answer ${item.dataset.letter} is ${place} of ${places.length}.`;
}
const up = item => item.previousElementSibling && move(item, item.previousElementSibling);
const down = item => item.nextElementSibling && move(item, item.nextElementSibling.nextElementSibling);

element.addEventListener('click', event => {
  const button = event.target.closest('[data-move]');
  if (button) (button.dataset.move === 'up' ? up : down)(button.closest('li'));
});
element.addEventListener('keydown', event => {
  const item = event.target.closest('.ranking > li');
  const go = {ArrowUp: up, ArrowDown: down}[event.key];
  if (!item || !go || !event.altKey) return;
  event.preventDefault();
  go(item);
});
let dragged = null;
element.addEventListener('dragstart', event => {
  dragged = event.target.closest?.('.ranking > li');
  if (!dragged) return;
  event.dataTransfer.effectAllowed = 'move';
  event.dataTransfer.setData('text/plain', ''); // Firefox drags nothing without data
});
element.addEventListener('dragover', event => {
  const over = event.target.closest?.('.ranking > li');
  if (!dragged) return;
  event.preventDefault();
  if (!over || over === dragged) return;
  const box = over.getBoundingClientRect();
  const before = event.clientY < box.top + box.height / 2 ? over : over.nextElementSibling;
  if (before !== dragged && before !== dragged.nextElementSibling) move(dragged, before);
});
element.addEventListener('drop', event => dragged && event.preventDefault());
element.addEventListener('dragend', () => { dragged = null; });

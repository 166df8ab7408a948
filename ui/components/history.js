// Back and Forward show the place that the address names. What a person chooses becomes an entry of
// the browser's history. What only follows from it, or arrives by itself, changes that entry.
let acted = false;
function act(event) {
  if (event.repeat || (event.type === 'click' && event.detail)) return; // detail: pointerdown came
  acted = true;
  window.studioRefresh.arrived = false;
}
for (const type of ['pointerdown', 'keydown', 'click']) document.addEventListener(type, act, true);

function arrive() {
  acted = false;
  trigger('arrive');
}
window.addEventListener('popstate', arrive);

// A link with data-place leads to a place of the same run without loading the page anew.
document.addEventListener('click', event => {
  const link = event.target.closest?.('a[data-place]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  const url = new URL(window.location.href);
  for (const key of ['tab', 'step', 'group', 'kind', 'part', 'at']) url.searchParams.delete(key);
  for (const [key, value] of new URLSearchParams(link.search)) url.searchParams.set(key, value);
  if (url.href !== window.location.href) history.pushState(null, '', url);
  arrive();
});

// After the page has shown what an address names.
window.studioArrived = run => {
  window.studioRefresh.arrivedRun = run;
  window.studioTerm?.();
};

// Values for a run that has just come into view: `first`, or no change if the address named the run
// and with it the values. A click may come before the page has handled the address, so the run that
// the address named is remembered.
window.studioAnew = (run, first) => {
  const state = window.studioRefresh;
  if (state.arrived || run === state.arrivedRun) return [];
  state.arrivedRun = null;
  return first;
};

// Writes what the page shows into the address, so that it can be shared and reloaded.
// places: the parts of Learn that have a place of their own, in the order of `ats`.
window.studioAddress = (places, tab, run, pin, opened, part, ...ats) => {
  const url = new URL(window.location.href);
  const query = url.searchParams;
  const set = (key, value) => value ? query.set(key, value) : query.delete(key);
  const ref = (tab === 'inspect' ? opened : tab === 'train' ? pin : '') || '';
  const [, kind, step, position] = /^(e?)(\d+)\/(\d+)$/.exec(ref) || [];
  set('tab', tab === 'train' ? '' : tab);
  set('run', run || '');
  set('step', step);
  set('group', step ? String(Number(position) + 1) : '');
  set('kind', kind ? 'evaluation' : '');
  set('part', tab === 'learn' ? part : '');
  set('at', tab === 'learn' ? ats[places.indexOf(part)] : '');
  if (url.href === window.location.href) return;
  if (acted) history.pushState(null, '', url);
  else history.replaceState(history.state, '', url);
  acted = false;
};

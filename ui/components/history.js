// Back and Forward show the place that the address names. What a person chooses becomes an entry of
// the browser's history. What only follows from it, or arrives by itself, changes that entry.
let acted = false;
function act(event) {
  if (event.repeat || (event.type === 'click' && event.detail)) return; // detail: pointerdown came
  acted = true;
  window.studioRefresh.arrived = false;
}
for (const type of ['pointerdown', 'keydown', 'click']) document.addEventListener(type, act, true);

window.addEventListener('popstate', () => {
  acted = false;
  trigger('arrive');
});

// After the page has shown what an address names.
window.studioArrived = run => { window.studioRefresh.arrivedRun = run; };

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
window.studioAddress = (tab, run, pin, opened) => {
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
  if (url.href === window.location.href) return;
  if (acted) history.pushState(null, '', url);
  else history.replaceState(history.state, '', url);
  acted = false;
};

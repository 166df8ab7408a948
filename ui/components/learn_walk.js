// Steps of the walk are computed here from the hidden place, so that quick presses all count.
// at: "37/2:kl" is group 3 of step 37, screen "kl"; without a group the server chooses one.
window.studioWalkGo = at => {
  const steps = document.querySelector('#walk-head .walk-steps');
  if (!steps) return at;
  const order = steps.dataset.order.split(' ');
  const [place, name] = (at || '').split(':');
  const {screen, by} = window.studioPressed;
  const to = by ? order.indexOf(name || order[0]) + Number(by) : order.indexOf(screen);
  return `${place || steps.dataset.group}:${order[Math.min(Math.max(to, 0), order.length - 1)]}`;
};
window.studioWalkPick = at => {
  const name = (at || '').split(':')[1];
  return document.querySelector('#walk-head [name=group]').value + (name ? `:${name}` : '');
};
window.studioWalkEdit = options => {
  const form = document.querySelector('#walk-controls form');
  return form ? window.studioOptions(options, form.dataset.screen, 'walk-controls') : options;
};
// The left and right arrow keys walk, unless they mean something where the focus is.
document.removeEventListener('keydown', window.studioWalkKeys);
window.studioWalkKeys = event => {
  const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  const {target} = event;
  if (!by || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (!element.offsetParent || target.closest('input, select, textarea')) return;
  if (target !== document.body && !target.closest('#learn-walk')) return;
  if (target.scrollWidth > target.clientWidth && target.matches('.scroll, pre')) return;
  event.preventDefault();
  element.querySelector(`[data-do=go][data-by="${by}"]`)?.click();
};
document.addEventListener('keydown', window.studioWalkKeys);

// The clock ticks here, from the seconds that the server last said, so that a long step costs no traffic. Phones fold the set-up while
// a run is going: they know by the attribute on the page's root.
let from = 0, told = 0;
function read() {
  const clock = element.querySelector('.clock');
  told = clock ? Number(clock.dataset.elapsed) : NaN;
  from = performance.now();
  document.documentElement.dataset.live = element.querySelector('.status')?.dataset.live || '0';
}
function tick() {
  const clock = element.querySelector('.clock');
  if (!clock || Number.isNaN(told)) return;
  const s = Math.floor(told + (performance.now() - from) / 1000);
  const two = n => String(n).padStart(2, '0');
  clock.textContent = s >= 3600 ? `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}` : `${Math.floor(s / 60)}:${two(s % 60)}`;
}
watch('value', read);
read();
setInterval(tick, 1000);

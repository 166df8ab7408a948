// The clock advances here, from the seconds in the server's last answer, so a long step needs no
// requests.
let since = 0, elapsed = 0;
function read() {
  const clock = element.querySelector('.clock');
  elapsed = clock ? Number(clock.dataset.elapsed) : NaN;
  since = performance.now();
}
function tick() {
  const clock = element.querySelector('.clock');
  if (!clock || Number.isNaN(elapsed)) return;
  const total = Math.floor(elapsed + (performance.now() - since) / 1000);
  const hours = Math.floor(total / 3600), minutes = Math.floor(total / 60);
  const two = n => String(n).padStart(2, '0');
  const seconds = two(total % 60);
  clock.textContent = hours ? `${hours}:${two(minutes % 60)}:${seconds}` : `${minutes}:${seconds}`;
}
watch('value', read);
read();
setInterval(tick, 1000);

// Light or dark: the system's choice until a person chooses. Buttons that only change the page's
// appearance set an attribute on its root, which no refresh replaces: data-toggle="texts" switches
// <html data-texts>.
const root = document.documentElement;
const chosen = (() => {
  try { return localStorage.getItem('studio-theme'); } catch { return null; }
})();
if (chosen) document.body.classList.toggle('dark', chosen === 'dark');

window.studioToggles = () => {
  for (const button of document.querySelectorAll('[data-toggle]')) {
    button.setAttribute('aria-pressed', String(root.dataset[button.dataset.toggle] === 'on'));
  }
};
document.addEventListener('click', event => {
  const button = event.target.closest('[data-toggle]');
  if (!button) return;
  const key = button.dataset.toggle;
  if (key === 'theme') {
    const dark = document.body.classList.toggle('dark');
    try {
      localStorage.setItem('studio-theme', dark ? 'dark' : 'light');
    } catch { /* a private window stores nothing */ }
    return;
  }
  root.dataset[key] = root.dataset[key] === 'on' ? '' : 'on';
  window.studioToggles();
});
// Gradio gives every radio button its own name, so the browser knows no radio group and arrow keys
// do nothing. Here they move the choice.
document.addEventListener('keydown', event => {
  const by = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  const group = by && event.target.matches('input[type=radio][name^="radio-"]')
    && event.target.closest('.wrap');
  if (!group || event.altKey || event.ctrlKey || event.metaKey) return;
  const all = [...group.querySelectorAll('input[type=radio]:not(:disabled)')];
  const next = all[(all.indexOf(event.target) + by + all.length) % all.length];
  event.preventDefault();
  next.focus();
  next.click();
});

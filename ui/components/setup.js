// The set-up of a run: which section is open, the draft that survives a reload, and which results
// belong to earlier settings. <html data-setup="rubric"> names the open section; without it the
// run is in view. With data-beside the run is in view too.
const page = document.documentElement;
let opener = null; // what had the focus when the pane was opened

function show(section) {
  page.dataset.setup = section || page.dataset.section || 'model';
  page.dataset.section = page.dataset.setup; // "New run" opens the last one again
  marked();
  trigger('go', {});
}

window.studioOpen = (section, field) => {
  if (!page.dataset.setup) opener = document.activeElement;
  delete page.dataset.beside; // what a person opens takes the whole width
  delete page.dataset.welcome;
  show(section);
  if (field) focusSoon(`#field-${field.replace(/[._]/g, '-')}`);
  else reveal();
};

// Before the first run of one's own the set-up opens by itself. Without any run there is nothing
// else to look at. The example run stays beside it where both have room, until that is closed.
const WELCOMED = 'studio-welcomed';
let welcomed = false;
try { welcomed = !!localStorage.getItem(WELCOMED); } catch { /* forbidden: it opens each time */ }
window.studioWelcome = own => {
  if (page.dataset.setup !== undefined) return;
  if (own === 'example') {
    if (!matchMedia('(min-width: 1240px)').matches || welcomed) return;
    page.dataset.beside = 'on';
  }
  page.dataset.welcome = 'on';
  show('model');
};

window.studioClose = () => {
  if (!page.dataset.setup) return;
  page.dataset.setup = '';
  delete page.dataset.beside;
  delete page.dataset.welcome;
  try { localStorage.setItem(WELCOMED, 'yes'); } catch { /* as above */ }
  marked();
  window.dispatchEvent(new Event('resize')); // charts that were hidden
  const back = opener && opener.isConnected ? opener : document.querySelector('#new-run button');
  back?.focus({preventScroll: true});
  opener = null;
};

// On a phone the sections are below their summary.
function reveal() {
  const pane = document.querySelector('#new-run-pane');
  setTimeout(() => { // the section is built
    const top = pane.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight / 2) pane.scrollIntoView({block: 'start'});
  }, 150);
}

// The section of a field is built when it is opened, so its field may come a little later.
function focusSoon(selector, tries = 40) {
  const box = document.querySelector(selector);
  const control = box?.querySelector('input, textarea, select') || box;
  if (control?.offsetParent) { // in view
    control.focus();
    control.scrollIntoView({block: 'center'});
  } else if (tries) setTimeout(focusSoon, 50, selector, tries - 1);
}

function marked() {
  for (const card of document.querySelectorAll('#setup-cards [data-section]')) {
    card.setAttribute('aria-expanded', String(card.dataset.section === page.dataset.setup));
  }
}

// A result names the settings that it was made with: data-for="model=1a2b run=3c4d".
window.studioMark = () => {
  marked();
  const words = text => (text || '').split(' ').filter(Boolean);
  const now = new Set(words(document.querySelector('#setup-cards [data-now]')?.dataset.now));
  for (const result of document.querySelectorAll('[data-for]')) {
    result.toggleAttribute('data-stale', !words(result.dataset.for).every(word => now.has(word)));
  }
};
document.addEventListener('click', event => {
  const button = event.target.closest('button[data-section], button[data-close-setup]');
  if (!button) return;
  if (button.dataset.closeSetup !== undefined) window.studioClose();
  else window.studioOpen(button.dataset.section, button.dataset.field);
});
document.addEventListener('keydown', event => {
  if (event.key !== 'Escape' || event.defaultPrevented) return;
  const busy = event.target.closest?.('[aria-expanded="true"][role="listbox"], [role="combobox"]');
  if (busy?.getAttribute('aria-expanded') === 'true') return;
  if (page.dataset.report === 'on') page.dataset.report = '';
  else window.studioClose();
});

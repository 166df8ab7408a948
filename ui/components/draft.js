// What a person typed into the set-up survives a reload: the browser keeps the values that differ
// from the defaults. Another version of the page ignores what it does not know.
const DRAFT = 'studio-draft-1';
const TEXT_CHARS = 20000, MAX_ROWS = 32;

const isPlain = value => value === null || ['string', 'boolean'].includes(typeof value)
  || Number.isFinite(value);
const isRows = value => Array.isArray(value) && value.length <= MAX_ROWS && value.every(
  row => row && typeof row === 'object' && !Array.isArray(row) && Object.values(row).every(isPlain));
const isSame = (a, b) => JSON.stringify(a ?? '') === JSON.stringify(b ?? '');

// A password in an address, or a parameter that may hold a key, is never kept.
function withoutSecrets(value) {
  if (Array.isArray(value)) return value.map(withoutSecrets);
  if (value && typeof value === 'object') {
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, withoutSecrets(v)]));
  }
  if (typeof value !== 'string') return value;
  return value.slice(0, TEXT_CHARS)
    .replace(/\/\/[^/\s"@]*@/g, '//')
    .replace(/("[^"]*(?:secret|password|passwd|api_?key|token(?!s))[^"]*"\s*:\s*)"[^"]*"/gi, '$1""')
    .replace(/\b(?:hf|sk)[_-][A-Za-z0-9_-]{16,}/g, '');
}

function readDraft() {
  try {
    const kept = JSON.parse(localStorage.getItem(DRAFT));
    return kept && typeof kept === 'object' && !Array.isArray(kept) ? kept : {};
  } catch { return {}; }
}

// defaults: {field: value}, in the order of the form, then the run's name.
window.studioDefaults = {};
window.studioKeep = values => {
  const changed = Object.entries(window.studioDefaults)
    .map(([name, usual], i) => [name, usual, values[i]])
    .filter(([, usual, value]) => value !== undefined && !isSame(value, usual))
    .map(([name, , value]) => [name, withoutSecrets(value)]);
  try {
    if (changed.length) localStorage.setItem(DRAFT, JSON.stringify(Object.fromEntries(changed)));
    else localStorage.removeItem(DRAFT);
  } catch { /* a private window stores nothing */ }
};

// The draft as new values of the form; an output that is not in the answer stays as it is. The
// last output says that the form was filled.
window.studioRestore = defaults => {
  window.studioDefaults = defaults;
  const kept = readDraft(), names = Object.keys(defaults), values = [];
  names.forEach((name, i) => {
    if (!Object.hasOwn(kept, name)) return;
    const fits = Array.isArray(defaults[name]) ? isRows(kept[name]) : isPlain(kept[name]);
    if (fits) values[i] = kept[name];
  });
  if (values.length) values[names.length] = `draft ${Date.now()}`;
  return values;
};

// A person's name for judging pairs is kept in the browser. What belongs to one tab of the browser
// survives a reload: the way of inspecting, how pairs are drawn, and what can be taken back.
const WHO = 'studio-who-1', PAIRS = 'studio-pairs-1';
const readKept = (storage, key) => {
  try { return storage.getItem(key) || ''; } catch { return ''; }
};
window.studioKeepPairs = (who, mode, seed, made) => {
  try {
    localStorage.setItem(WHO, who.slice(0, 80));
    sessionStorage.setItem(PAIRS, JSON.stringify([mode, seed, made]));
  } catch { /* a private window stores nothing */ }
};
// Returns who, mode, seed and made.
window.studioRestorePairs = () => {
  let kept = [];
  try { kept = JSON.parse(readKept(sessionStorage, PAIRS) || '[]'); } catch { /* of another version */ }
  const [mode, seed, made] = Array.isArray(kept) ? kept : [];
  // An address that names a group opens it; a reload shows what was shown.
  const names = new URLSearchParams(location.search).has('step');
  const isNew = names && performance.getEntriesByType('navigation')[0]?.type !== 'reload';
  const isMode = ['explore', 'compare', 'rank'].includes(mode) && !isNew;
  return [
    readKept(localStorage, WHO),
    isMode ? mode : 'explore',
    typeof seed === 'string' && seed ? seed : String(Math.floor(Math.random() * 1e9)),
    typeof made === 'string' && made ? made : '[]',
  ];
};

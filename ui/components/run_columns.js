// Which columns the table of runs shows: a choice of this browser.
const KEY = 'studio-columns';
const boxes = [...element.querySelectorAll('input')], sheet = element.querySelector('style');
function apply() {
  const hidden = boxes.filter(box => !box.checked).map(box => box.value);
  sheet.textContent = hidden.map(key => `.runs .c-${key} { display: none !important; }`).join('\n');
  return hidden;
}
try {
  const hidden = JSON.parse(localStorage.getItem(KEY)) || [];
  for (const box of boxes) box.checked = !hidden.includes(box.value);
} catch { /* nothing stored, or a private window */ }
apply();
element.addEventListener('change', () => {
  const hidden = apply();
  try {
    localStorage.setItem(KEY, JSON.stringify(hidden));
  } catch { /* a private window stores nothing */ }
});

// A button whose action would be refused says why below the bar, when it is pressed or focused.
function explain(event) {
  const why = element.querySelector('.why');
  if (why) why.textContent = event.target.closest('[data-why]')?.dataset.why || '';
}
element.addEventListener('click', explain);
element.addEventListener('focusin', explain);

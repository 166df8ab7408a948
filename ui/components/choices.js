// Choices are computed here, in the page's hidden values, and then shown. If the server computed
// them, Gradio would handle a choice made before the previous answer arrived with old data, or
// drop it.
window.studioPressed = {}; // the data attributes of the button pressed last, see html_panel.py

// What is typed into a long list searches it, in place of the choice that stands there.
document.addEventListener('focusin', ({target}) => {
  if (target.matches('#field-task-name input, #field-task-environment input')) {
    // After the press has placed its cursor. In Chromium select() takes the focus back.
    setTimeout(() => document.activeElement === target && target.select());
  }
});

// A small form as {name: value}.
window.studioForm = id => {
  const values = {};
  for (const field of document.querySelectorAll(`#${id} [name]`)) {
    if (field.type === 'radio') {
      if (field.checked) values[field.name] = field.value;
    } else {
      values[field.name] = field.type === 'checkbox' ? field.checked : field.value.slice(0, 200);
    }
  }
  return values;
};

// The filters of the Inspector after a change, on the first page again.
window.studioFilter = (filters, change) => {
  const now = JSON.parse(filters || '{}');
  return JSON.stringify({...now, offset: 0, ...change(now)});
};

// The forms of all views, as {view: form}, with this view's form as it is now.
// Without a form the view's entry is removed.
window.studioOptions = (options, view, form) => JSON.stringify(
  {...JSON.parse(options || '{}'), [view]: form ? window.studioForm(form) : undefined});

// A list of names with one added or removed.
window.studioToggle = (names, name) => {
  const now = JSON.parse(names || '[]');
  return JSON.stringify(now.includes(name) ? now.filter(other => other !== name) : [...now, name]);
};

// Whether a table starts with its largest value after a press on a heading. The same heading again
// reverses the order; columns of words start with A.
window.studioDescending = (key, descending, words = []) => {
  const pressed = window.studioPressed.key;
  return pressed === key ? !descending : !words.includes(pressed);
};

window.studioSort = (sort, words) => {
  const now = JSON.parse(sort || '{}');
  const descending = window.studioDescending(now.key, now.descending, words);
  return JSON.stringify({key: window.studioPressed.key, descending});
};

// The pressed row's group. Where it opens below the list, as on a phone, the page scrolls to it.
window.studioOpenRow = () => {
  const group = document.querySelector('#opened');
  if (getComputedStyle(group.parentElement).flexDirection === 'column') group.scrollIntoView();
  return window.studioPressed.at;
};

// The next or previous group of the step; the last is followed by the first.
// groupRef: "37/2" is step 37, third group; "e37/2" is of the evaluation after it.
window.studioWalk = groupRef => {
  const [step, group] = groupRef.split('/');
  const {by, groups} = window.studioPressed;
  return groupRef && `${step}/${(Number(group) + Number(by) + Number(groups)) % Number(groups)}`;
};

// Opens a tab; on Runs it also selects the run of the button that was pressed.
window.studioOpenTab = name => {
  document.getElementById(`tab-${name}-button`)?.click();
  const run = window.studioPressed.run;
  if (name !== 'runs' || !run) return;
  const select = left => {
    const box = document.querySelector(`#run-table [role=checkbox][data-run="${CSS.escape(run)}"]`);
    if (box?.getAttribute('aria-checked') === 'false') box.click();
    else if (!box && left) setTimeout(select, 100, left - 1);
  };
  select(50);
};

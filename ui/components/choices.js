// What a person chooses is settled here, in the page's hidden values, and then shown. Were it sent to the server first, Gradio would answer a choice
// that was made before the answer to the one before with the older one's data, or not at all.
window.studioPressed = {}; // what the button that was pressed last says of itself, see panel.py

// A small form as {name: value}: whatever is moved or chosen in it counts as a whole.
window.studioForm = id => {
  const values = {};
  for (const field of document.querySelectorAll(`#${id} [name]`)) {
    if (field.type === 'radio') { if (field.checked) values[field.name] = field.value; }
    else values[field.name] = field.type === 'checkbox' ? field.checked : field.value.slice(0, 200);
  }
  return values;
};

// The filters of the Inspector with one of them changed, on the first page again.
window.studioFilter = (filters, change) => {
  const now = JSON.parse(filters || '{}');
  return JSON.stringify({...now, offset: 0, ...change(now)});
};

// What the forms of the looks say, this look's as it stands now; without a form: nothing.
window.studioLook = (said, look, form) => JSON.stringify({...JSON.parse(said || '{}'), [look]: form ? window.studioForm(form) : undefined});

// A list of names with one of them put in or taken out.
window.studioToggle = (names, name) => {
  const now = JSON.parse(names || '[]');
  return JSON.stringify(now.includes(name) ? now.filter(other => other !== name) : [...now, name]);
};

// Whether a table whose heading was pressed now starts with its largest: the same heading again turns the order round, words start at A.
window.studioDescending = (key, descending, words = []) => window.studioPressed.key === key ? !descending : !words.includes(window.studioPressed.key);

window.studioSort = (sort, words) => {
  const now = JSON.parse(sort || '{}');
  return JSON.stringify({key: window.studioPressed.key, descending: window.studioDescending(now.key, now.descending, words)});
};

// The next or previous group of the step, round and round. here: "37/2", step 37, third group.
window.studioWalk = here => {
  const [step, group] = here.split('/').map(Number), {by, groups} = window.studioPressed;
  return here && `${step}/${(group + Number(by) + Number(groups)) % Number(groups)}`;
};

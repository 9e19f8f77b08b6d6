// A button says by one value what it is about: a case to pin, a row of a batch to open, an example.
const EVENTS = {pin: 'select', unpin: 'select', open: 'select', example: 'select', like: 'edit', back: 'edit'};
element.addEventListener('click', (event) => {
  for (const [name, kind] of Object.entries(EVENTS)) {
    const value = event.target.closest(`button[data-${name}]`)?.dataset[name];
    if (value !== undefined) trigger(kind, {[name]: ['pin', 'like'].includes(name) ? value : Number(value)});
  }
});

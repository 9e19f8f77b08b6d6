// A button says by one number what it is about: a case to pin, a row of a batch to open.
element.addEventListener('click', (event) => {
  for (const name of ['pin', 'unpin', 'open']) {
    const button = event.target.closest(`button[data-${name}]`);
    if (button) trigger('select', {[name]: Number(button.dataset[name])});
  }
});

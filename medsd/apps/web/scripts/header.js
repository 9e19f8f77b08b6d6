// Dark, as radiographs are read, until the reader chooses light; the choice stays in this browser.
const show = (look) => document.body.classList.toggle('dark', look !== 'light');
show(localStorage.getItem('look'));
element.querySelector('button').addEventListener('click', () => {
  const look = document.body.classList.contains('dark') ? 'light' : 'dark';
  localStorage.setItem('look', look);
  show(look);
});

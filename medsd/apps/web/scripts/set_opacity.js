(percent) => {
  const root = document.documentElement.style;
  root.setProperty('--opacity', percent / 100);
  root.setProperty('--scale', percent ? 'inline-block' : 'none');
  root.setProperty('--hidden', percent ? 'none' : 'inline');
}

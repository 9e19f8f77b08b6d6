(times) => {
  // The middle of what is seen stays in the middle.
  const area = document.querySelector('#radiograph');
  const x = (area.scrollLeft + area.clientWidth / 2) / area.scrollWidth;
  const y = (area.scrollTop + area.clientHeight / 2) / area.scrollHeight;
  document.documentElement.style.setProperty('--zoom', times);
  area.scrollLeft = x * area.scrollWidth - area.clientWidth / 2;
  area.scrollTop = y * area.scrollHeight - area.clientHeight / 2;
}

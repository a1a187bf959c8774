// Audio of one panel at a time, and all videos from the start.
element.addEventListener('click', event => {
  const chosen = event.target.closest('button');
  if (!chosen) return;
  const listen = chosen.getAttribute('aria-pressed') !== 'true';
  element.querySelectorAll('figure.panel').forEach(panel => {
    const video = panel.querySelector('video'), button = panel.querySelector('button');
    const on = listen && button === chosen;
    video.muted = !on;
    video.currentTime = 0;
    video.play();
    if (button) button.setAttribute('aria-pressed', on);
  });
});

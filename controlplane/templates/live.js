const status = document.getElementById("live");
const stream = new EventSource("v1/load/stream");
let news = false, waited = 0;
stream.onmessage = () => { news = true; };
stream.addEventListener("load", stream.onmessage);
setInterval(async () => {
  waited += 1;
  if ((!news && waited < 5) || document.hidden || !getSelection().isCollapsed) return;
  news = false;
  waited = 0;
  try {
    const answer = await fetch(location.origin + location.pathname + location.search, { signal: AbortSignal.timeout(10000) });
    if (!answer.ok && answer.status !== 404) throw new Error(answer.status);
    const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    const focused = document.activeElement.id;
    document.querySelector("main").replaceWith(next);
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    status.textContent = stream.readyState === EventSource.OPEN ? "live" : "every 5 s";
  } catch {
    status.textContent = "service does not answer";
  }
  document.body.dataset.live = status.textContent;
}, 1000);

"use strict";
// Pages of several runs: one article at a time, chosen by radio button or address, and section links that follow it.
(() => {
  const articles = [...document.querySelectorAll("article.run")];
  const links = [...document.querySelectorAll(".bar a")];
  let current = "0";
  const linked = (link) => document.getElementById(`run-${current}-${link.dataset.section}`);
  const choose = (index) => {
    current = index;
    for (const article of articles) article.hidden = article.dataset.run !== index;
    for (const link of links) {
      link.setAttribute("href", `#run-${index}-${link.dataset.section}`);
      link.parentElement.hidden = !linked(link);
    }
    mark();
  };
  const mark = () => {
    const passed = links.filter((link) => linked(link) && linked(link).getBoundingClientRect().top < 160);
    for (const link of links) {
      if (link === passed[passed.length - 1]) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  const switcher = document.getElementById("runs");
  if (switcher) switcher.addEventListener("change", (event) => choose(event.target.value));
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; mark(); });
  }, { passive: true });
  const asked = /^#run-(\d+)/.exec(location.hash);
  const start = asked && articles[Number(asked[1])] ? asked[1] : "0";
  const radio = switcher && switcher.querySelector(`input[value="${start}"]`);
  if (radio) radio.checked = true;
  choose(start);
})();

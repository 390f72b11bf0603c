"use strict";
// The run report: carrier map and answers.
(() => {
  const data = JSON.parse(document.getElementById("lcdd-data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const MOST_LISTED = 300;
  const FIRST_SHOWN = 8;
  const FIRST_OF_SEEDS = 4;

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  const strip = (site) => {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${site.n} 34`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `places of ${site.open.length} open channels among ${site.n}`);
    const rectangle = (x, width, className) => {
      const made = document.createElementNS(SVG, "rect");
      made.setAttribute("x", x);
      made.setAttribute("width", width);
      made.setAttribute("height", 34);
      made.setAttribute("class", className);
      svg.append(made);
    };
    rectangle(0, site.n, "ground");
    const width = Math.max(1, site.n / 300);
    for (const channel of site.open) rectangle(Math.min(channel, site.n - width), width, "open");
    return svg;
  };

  // The same site in the carriers of the page's other seeds.
  const elsewhere = (prefix, hook, site) => {
    const parts = [];
    for (const [other, sites] of Object.entries(data.carriers)) {
      const there = other !== prefix && sites[hook];
      if (!there || there.n !== site.n) continue;
      const shared = there.open.filter((channel) => site.open.includes(channel)).length;
      parts.push(element("p", `${data.names[other]}: ${there.open.length} open, ${shared} of them here as well`, "other"));
      if (there.open.length) parts.push(strip(there));
    }
    return parts.length ? [element("p", "The same site in the other seeds:", "quiet group"), ...parts] : parts;
  };

  const describe = (panel, hook, site, prefix) => {
    const share = `${+((100 * site.open.length) / site.n).toFixed(1)} %`;
    const parts = [element("h4", `Layer ${site.layer}, ${site.kind}`)];
    const name = element("p");
    name.append(element("code", hook));
    parts.push(name);
    if (site.meaning) parts.push(element("p", `${site.meaning[0].toUpperCase()}${site.meaning.slice(1)}.`, "quiet"));
    parts.push(element("p", `${site.open.length.toLocaleString("en")} of ${site.n.toLocaleString("en")} channels open (${share})`));
    if (site.open.length) {
      parts.push(strip(site));
      const ends = element("p", undefined, "ends");
      ends.append(element("span", "0"), element("span", String(site.n - 1)));
      parts.push(ends);
      const scored = site.scores.length > 0;
      const order = site.open.map((_, index) => index);
      if (scored) order.sort((a, b) => site.scores[b] - site.scores[a]);
      parts.push(element("p", scored ? "Channels by score θ:" : "Channels:", "quiet"));
      const list = element("ul", undefined, "channels");
      for (const index of order.slice(0, MOST_LISTED)) {
        const channel = site.open[index];
        const head = site.head ? `h${Math.floor(channel / site.head)}.${channel % site.head}` : String(channel);
        const item = element("li", head);
        if (scored) item.append(element("small", String(site.scores[index])));
        list.append(item);
      }
      parts.push(list);
      if (order.length > MOST_LISTED) parts.push(element("p", `and ${order.length - MOST_LISTED} more`, "quiet"));
    }
    parts.push(...elsewhere(prefix, hook, site));
    panel.replaceChildren(...parts);
  };

  for (const map of document.querySelectorAll("table.map")) {
    const sites = data.carriers[map.dataset.carrier];
    const panel = map.closest("section").querySelector(".panel");
    const show = (button) => describe(panel, button.dataset.site, sites[button.dataset.site], map.dataset.carrier);
    const fullest = [...map.querySelectorAll("tbody button")].reduce((a, b) => {
      const share = (button) => sites[button.dataset.site].open.length / sites[button.dataset.site].n;
      return share(b) > share(a) ? b : a;
    });
    const hint = panel.firstElementChild;
    show(fullest);
    panel.append(hint);
    lcddGrid(map, show);
  }

  for (const controls of document.querySelectorAll(".controls")) {
    const section = controls.closest("section");
    const samples = [...section.querySelectorAll(".sample")];
    const count = section.querySelector(".count");
    const more = section.querySelector(".more");
    let limit = section.id === "seeds-answers" ? FIRST_OF_SEEDS : FIRST_SHOWN;
    const filter = () => {
      const shown = new Set([...controls.querySelectorAll("input[type=checkbox]:checked")].map((box) => box.value));
      const chosen = controls.querySelector("select[data-filter=condition]");
      if (chosen) shown.add(chosen.value).add("base");
      const label = (controls.querySelector("select[data-filter=label]") || {}).value || "";
      const words = controls.querySelector("input[type=search]").value.trim().toLowerCase();
      let matching = 0;
      let visible = 0;
      for (const sample of samples) {
        for (const answer of sample.querySelectorAll(".answer")) answer.hidden = !shown.has(answer.dataset.condition);
        const fits = (!label || sample.dataset.label === label) && (!words || sample.textContent.toLowerCase().includes(words));
        sample.hidden = !fits || visible >= limit;
        matching += fits ? 1 : 0;
        visible += sample.hidden ? 0 : 1;
      }
      count.textContent = visible === samples.length ? `${visible} prompts` : `${visible} of ${matching} prompts`;
      more.hidden = visible === matching;
      more.textContent = `Show all ${matching} prompts`;
    };
    controls.addEventListener("input", filter);
    more.addEventListener("click", () => {
      limit = Infinity;
      const next = samples.find((sample) => sample.hidden);
      filter();
      next.tabIndex = -1;
      next.focus({ preventScroll: true });
    });
    filter();
  }
})();

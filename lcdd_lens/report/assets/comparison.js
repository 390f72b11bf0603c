"use strict";
// The comparison page: which channels a set has at a site, and what every method says of them.
(() => {
  const data = JSON.parse(document.getElementById("lcdd-data").textContent);
  const MOST_COLUMNS = 24;

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const heat = (density) => (density <= 0 ? 0 : Math.max(1, Math.round(10 * Math.sqrt(density))));
  const named = (site, channel) =>
    site.head ? `h${Math.floor(channel / site.head)}.${channel % site.head}` : String(channel);
  const written = (value) => {
    if (value === null) return "–";
    const small = value && Math.abs(value) < 1e-3;
    return (small ? value.toExponential(1) : String(+value.toPrecision(2))).replaceAll("-", "−");
  };

  // Places in site.channels: members of the chosen set first, each group by the best rank that any method gives.
  const ordered = (site, chosen) => {
    const members = new Set(site.sets[chosen.name] || []);
    const key = (place) => (chosen.column === null ? -(site.theta[place] ?? 0) : site.ranks[place][chosen.column]);
    const best = (place) => Math.min(...site.ranks[place]);
    const places = site.channels.map((_, place) => place);
    return {
      members,
      places: places.sort((a, b) =>
        members.has(b) - members.has(a) || (members.has(a) ? key(a) - key(b) : best(a) - best(b)) || a - b),
    };
  };

  for (const map of document.querySelectorAll("table.map")) {
    const found = data.comparisons[map.dataset.comparison];
    const section = map.closest("section");
    const panel = section.querySelector(".panel");
    const detail = section.querySelector(".detail");
    const select = section.querySelector("select");
    const buttons = [...map.querySelectorAll("tbody button")];
    const hint = panel.firstElementChild;
    let chosen = found.sets[0];
    let current = null;
    const count = (set, site) => ((found.places[set.name] || {})[site.kind] || [])[site.layer] || 0;

    const table = (site) => {
      const { members, places } = ordered(site, chosen);
      const shown = places.slice(0, MOST_COLUMNS);
      if (!shown.length) return [element("p", "No set has a channel at this site.", "quiet")];
      const made = element("table");
      const head = made.createTHead().insertRow();
      head.append(element("th", "method"), element("th", "here"));
      for (const place of shown) head.append(element("th", named(site, site.channels[place]), members.has(place) ? "member" : ""));
      for (const cell of head.cells) cell.scope = "col";
      const body = made.createTBody();
      for (const set of found.sets) {
        const row = body.insertRow();
        const own = new Set(site.sets[set.name] || []);
        if (set.name === chosen.name) row.className = "chosen";
        const label = element("th", set.label);
        label.scope = "row";
        row.append(label, element("td", String(count(set, site))));
        for (const place of shown) {
          const cell = element("td", undefined, own.has(place) ? "within" : "");
          if (set.column === null) {
            cell.append(own.has(place) ? "open" : "closed");
            if (site.theta.length) cell.append(element("small", `θ ${written(site.theta[place])}`));
          } else {
            cell.append(site.ranks[place][set.column].toLocaleString("en"));
            cell.append(element("small", written(site.scores[place][set.column])));
          }
          row.append(cell);
        }
      }
      const rest = places.length - shown.length;
      return rest ? [made, element("p", `and ${rest} more`, "quiet")] : [made];
    };

    const describe = (button) => {
      current = button;
      const site = found.sites[button.dataset.site];
      const n = count(chosen, site);
      const parts = [element("h4", `Layer ${site.layer}, ${site.kind}`)];
      const hook = element("p");
      hook.append(element("code", button.dataset.site));
      parts.push(hook);
      if (site.meaning) parts.push(element("p", `${site.meaning[0].toUpperCase()}${site.meaning.slice(1)}.`, "quiet"));
      parts.push(element("p", `Channels of ${chosen.label} here: ${n} of its ${found.size}; the site has ${site.n}.`, "told"));
      const { members, places } = ordered(site, chosen);
      if (members.size) {
        const list = element("ul", undefined, "channels");
        for (const place of places) if (members.has(place)) list.append(element("li", named(site, site.channels[place])));
        parts.push(list);
        if (n > members.size) parts.push(element("p", `and ${n - members.size} more`, "quiet"));
      }
      panel.replaceChildren(...parts);
      detail.replaceChildren(...table(site));
    };

    const paint = () => {
      for (const button of buttons) {
        const site = found.sites[button.dataset.site];
        const n = count(chosen, site);
        button.className = `h${heat(n / site.n)}`;
        button.textContent = n || "·";
        button.setAttribute("aria-label", `layer ${site.layer}, ${site.kind}: ${n} of ${site.n} channels`);
      }
    };
    select.addEventListener("change", () => {
      chosen = found.sets.find((set) => set.name === select.value);
      paint();
      describe(current);
    });
    const share = (button) => {
      const site = found.sites[button.dataset.site];
      return count(chosen, site) / site.n;
    };
    chosen = found.sets.find((set) => set.name === select.value) || chosen;
    paint();
    describe(buttons.reduce((a, b) => (share(b) > share(a) ? b : a)));
    panel.append(hint);
    lcddGrid(map, describe);
  }
})();

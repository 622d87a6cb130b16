"use strict";
(() => {
  const chips = [...document.querySelectorAll("#routers button[data-router]")];
  const drawn = new Set();

  const chosen = () =>
    new Set(chips.filter((c) => c.getAttribute("aria-pressed") === "true").map((c) => c.dataset.router));

  const isShown = (trace, shown) => !("meta" in trace) || shown.has(trace.meta);

  // Marks of one row are moved apart, so that each shown router has a height of its own.
  function apart(data, shown) {
    const visible = data.filter((trace) => isShown(trace, shown));
    return data.map((trace) => {
      const place = visible.indexOf(trace);
      const offset = place < 0 ? 0 : ((place + 0.5) / visible.length - 0.5) * 0.8;
      return trace.y.map((_, row) => row + offset);
    });
  }

  // Library and figures are packed; the browser itself unpacks them, once a chart is to be seen.
  async function unpacked(name) {
    const packed = atob(document.getElementById(name).textContent);
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }
  async function load() {
    const figures = JSON.parse(await unpacked("figures"));
    const script = document.createElement("script");
    script.textContent = await unpacked("library");
    document.head.append(script);
    return figures;
  }
  let loading = null;
  let figures = null;

  async function draw(place) {
    try {
      loading = loading || load();
      figures = await loading;
      const { data, layout, apart: separated } = figures[place.dataset.figure];
      const shown = chosen();
      if (separated) apart(data, shown).forEach((y, number) => (data[number].y = y));
      for (const trace of data) trace.visible = isShown(trace, shown);
      await window.Plotly.newPlot(place, data, layout, { responsive: true, displayModeBar: false });
      drawn.add(place);
      place.dataset.drawn = "yes";
    } catch (error) {
      place.classList.add("failed");
      place.textContent = "This browser is too old to draw the chart; the tables hold the numbers.";
      console.error(error);
    }
  }

  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        watcher.unobserve(target);
        draw(target);
      }
    },
    { rootMargin: "300px" },
  );
  for (const place of document.querySelectorAll(".chart")) {
    watcher.observe(place);
  }

  function redraw() {
    const shown = chosen();
    for (const place of drawn) {
      const changed = { visible: place.data.map((trace) => isShown(trace, shown)) };
      if (figures[place.dataset.figure].apart) changed.y = apart(place.data, shown);
      window.Plotly.restyle(place, changed);
    }
  }
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
      redraw();
    });
  }
  document.querySelector("#routers .all").addEventListener("click", () => {
    const all = chips.every((chip) => chip.getAttribute("aria-pressed") === "true");
    for (const chip of chips) {
      chip.setAttribute("aria-pressed", String(all ? "first" in chip.dataset : true));
    }
    redraw();
  });

  // A click on a heading sorts; what stands apart (unstable, upper bounds) stays below.
  for (const button of document.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const column = head.cellIndex;
      const upwards = head.getAttribute("aria-sort") !== "ascending";
      const body = head.closest("table").tBodies[0];
      const value = (row) => {
        const cell = row.cells[column];
        return column === 0 ? cell.textContent.trim() : parseFloat(cell.dataset.value);
      };
      const compared = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (column === 0) return upwards ? x.localeCompare(y) : y.localeCompare(x);
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return upwards ? x - y : y - x;
      };
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
      body.append(...[...body.rows].sort(compared));
    });
  }

  const maps = [...document.querySelectorAll("[data-map]")];
  const selects = [...document.querySelectorAll(".choice select")];
  const choose = () => {
    const wanted = selects.map((select) => select.value).join(" ");
    for (const map of maps) map.hidden = map.dataset.map !== wanted;
  };
  for (const select of selects) select.addEventListener("change", choose);
  if (maps.length) choose();

  // A link to a scenario opens what it is folded into.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let one = target; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
    if (target) target.scrollIntoView();
  };
  window.addEventListener("hashchange", reveal);
  if (location.hash) reveal();
})();

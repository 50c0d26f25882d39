// The page: theme, which run is shown, and the section links.

const runs = JSON.parse(document.getElementById("island").textContent);
const root = document.documentElement;
root.classList.add("scripted");

function remembered(key) {
  try { return localStorage.getItem(key); } catch { return null; } // some browsers refuse storage to local files
}
function remember(key, value) {
  try { localStorage.setItem(key, value); } catch { /* the choice lasts as long as the page */ }
}

const savedTheme = remembered("isobit-theme");
if (savedTheme === "light" || savedTheme === "dark") root.dataset.theme = savedTheme;
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remember("isobit-theme", root.dataset.theme);
});

const articles = [...document.querySelectorAll("article.run")];
const links = [...document.querySelectorAll(".bar nav a")];
const select = document.getElementById("run-select");
const built = new Set();
let current = 0;

function showRun(index) {
  current = index;
  articles.forEach((article, i) => { article.hidden = i !== index; });
  if (select) select.value = String(index);
  links.forEach((link) => link.setAttribute("href", `#r${index}-${link.dataset.section}`));
  for (const row of document.querySelectorAll(".comparison tbody tr")) {
    row.classList.toggle("current", Number(row.dataset.run) === index);
    const link = row.querySelector("a");
    if (Number(row.dataset.run) === index) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  const section = articles[index].querySelector("section.layers");
  if (!built.has(index) && runs[index].layers.length) {
    built.add(index);
    layerSection(section, runs[index].layers);
  }
}

function fromAddress() {
  const found = /^#r(\d+)(-|$)/.exec(location.hash);
  if (found && Number(found[1]) < runs.length && Number(found[1]) !== current) showRun(Number(found[1]));
  if (found) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

select?.addEventListener("change", () => { history.replaceState(null, "", `#r${select.value}`); showRun(Number(select.value)); });
addEventListener("hashchange", fromAddress);
addEventListener("scroll", hideTip, {passive: true});

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links) {
      if (entry.target.id.endsWith(`-${link.dataset.section}`)) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }
}, {rootMargin: "-64px 0px -75% 0px"});
document.querySelectorAll(".run > section").forEach((section) => seen.observe(section));

showRun(0);
fromAddress();

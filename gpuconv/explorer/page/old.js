
// In a browser that knows no modules, or not what the script uses, the page says so. Written for any browser.
window.setTimeout(function () {
  if (!window.gpuconvExplorer) document.getElementById("old").removeAttribute("hidden");
}, 5000);

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    const said = document.getElementById("copied");
    try {
      if (navigator.clipboard) {
        await navigator.clipboard.writeText(source.textContent);
      } else { // over plain http from another machine
        getSelection().selectAllChildren(source);
        document.execCommand("copy");
      }
      said.textContent = `Copied: ${button.getAttribute("aria-label").replace("Copy ", "")}`;
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      said.textContent = "Selected: copy it with the keyboard";
    }
  });
}

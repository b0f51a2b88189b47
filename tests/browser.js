// What tests/browser.py asks a page of JupyterLab.
window.reader = {
  changes: [], // of a watched picture: milliseconds since the last key was pressed

  // Cells that wait have a star; after an error the rest lose it and have no number.
  finished() {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent);
    return prompts.some(text => /\d/.test(text)) && !prompts.some(text => text.includes('*'));
  },

  // What is wrong in the page: elements, and what to say of them.
  faults() {
    return [...document.querySelectorAll('.jp-Notebook .jp-Cell')].flatMap((cell, i) => {
      const faults = [];
      const say = (element, what) => faults.push({element, text: `cell ${i + 1}: ${what}`});
      if (cell.matches('.jp-CodeCell') && !/\d/.test(cell.querySelector('.jp-InputPrompt').textContent))
        say(cell, 'not run');
      for (const output of cell.querySelectorAll('[data-mime-type$=".stderr"], [data-mime-type$=".error"]'))
        say(output, `error output: ${output.innerText.trim().split('\n').pop()}`);
      for (const formula of cell.querySelectorAll('mjx-merror')) say(formula, `formula: ${formula.textContent}`);
      for (const widget of cell.querySelectorAll('[data-mime-type*="widget-view"]'))
        if (/Error displaying widget|Loading widget/.test(widget.innerText)) say(widget, 'widget not shown');
      for (const image of cell.querySelectorAll('.jp-OutputArea img, .jp-RenderedMarkdown img:not([src^="https"])'))
        if (!image.naturalWidth || image.clientWidth < 20 || image.clientHeight < 20)
          say(image, `picture not visible: ${image.alt}`);
      for (const box of [cell, ...cell.querySelectorAll('*')]) {
        const visible = getComputedStyle(box).overflowX === 'visible' && box !== cell;
        const beyond = box.scrollWidth - box.clientWidth;
        if (!visible && beyond > 1 && box.clientWidth > 1 && !box.closest('mjx-assistive-mml'))
          say(box, `cut off by ${beyond} of ${box.scrollWidth} pixels: ${this.beyond(box)}`);
      }
      return faults;
    });
  },

  // The first text that reaches over the right edge of a box that hides or scrolls what it holds; its longest line.
  beyond(box) {
    const edge = box.getBoundingClientRect().left + box.clientLeft + box.clientWidth;
    const range = document.createRange();
    const nodes = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
    let text = box.innerText || box.className;
    for (let node = nodes.nextNode(); node; node = nodes.nextNode()) {
      range.selectNodeContents(node);
      if (range.getBoundingClientRect().right > edge + 1) {
        text = (node.parentElement.closest('.cm-line, td, th, p, li, label, pre') || box).textContent;
        break;
      }
    }
    return text.split('\n').reduce((a, b) => (b.length > a.length ? b : a)).trim().slice(0, 90);
  },

  // From here on `changes` lists each change of the explorer's picture.
  watch(explorer) {
    const figure = explorer.querySelector('.vqnotes-figure');
    const source = () => figure.querySelector('img')?.src;
    let before = source(), pressed = 0;
    window.addEventListener('keydown', () => { pressed = performance.now(); }, true);
    new MutationObserver(() => {
      const now = source();
      if (now && now !== before) this.changes.push(performance.now() - pressed);
      before = now || before;
    }).observe(figure, {subtree: true, childList: true, attributes: true});
  },
};

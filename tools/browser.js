// What tools/browser.py asks a page of JupyterLab.
window.reader = {
  changes: [], // of a watched picture: milliseconds since the last key was pressed
  asked: null, // what the page has sent to its widgets in the kernel and has no answer to

  // The panel of the notebook that the page was opened with.
  panel() { return this.first ??= jupyterapp.shell.currentWidget; },
  frame() { return new Promise(requestAnimationFrame); },

  // How many milliseconds lie between so many frames.
  async frames(count) {
    const times = [];
    for (let i = 0; i <= count; i++) times.push(await this.frame());
    return times.slice(1).map((time, i) => time - times[i]);
  },

  // Resolves when the picture has changed so often, or when nothing can be on its way any more: 20 times one after
  // another the kernel has answered a question, and all that the widgets said to it. So no clock decides.
  async settled(changes = Infinity) {
    const kernel = this.panel().sessionContext.session.kernel;
    if (!this.asked) {
      const asked = this.asked = new Set();
      kernel.anyMessage.connect((_, {msg, direction}) => {
        if (direction === 'send' && msg.header.msg_type === 'comm_msg') asked.add(msg.header.msg_id);
        if (msg.header.msg_type === 'status' && msg.content.execution_state === 'idle')
          asked.delete(msg.parent_header.msg_id);
      });
    }
    for (let i = 0; i < 20 && this.changes.length < changes; i++) {
      await this.frame();
      await kernel.requestKernelInfo();
      while (this.asked.size) await this.frame();
      await this.frame();
    }
    for (const image of document.querySelectorAll('.jp-OutputArea img')) await image.decode().catch(() => null);
  },

  // The links in the texts of what is shown, and where JupyterLab takes each: a path with an id, if it is a file.
  links() {
    const page = this.panel() && jupyterapp.shell.currentWidget.node;
    const cells = [...page.querySelectorAll('.jp-Cell')];
    const anchors = page.querySelectorAll('.jp-RenderedMarkdown a:not(.jp-InternalAnchorLink)');
    return [...anchors].map((anchor, number) => {
      const written = anchor.getAttribute('href') || '', address = anchor.href;
      const file = anchor.host === location.host ? /^[^?#]*\/files\/([^?#]+)[^#]*#?(.*)/.exec(address) : null;
      const [path, id] = file ? file.slice(1).map(decodeURIComponent) : [null, ''];
      const here = written.startsWith('#') && this.has(decodeURIComponent(written.slice(1)));
      const cell = cells.indexOf(anchor.closest('.jp-Cell')) + 1;
      return {number, cell, text: anchor.innerText, written, address, here, path, id};
    });
  },
  has(id) {
    const name = CSS.escape(id);
    return !!jupyterapp.shell.currentWidget.node.querySelector(`[data-jupyter-id="${name}"], #${name}`);
  },

  // Clicks on a link to a file, and waits for the file or a complaint: what is wrong. Then `back` leads back.
  async open({number, path, id}) {
    const {shell} = jupyterapp;
    const before = shell.currentWidget, there = new Set(shell.widgets('main'));
    const complaint = () => document.querySelector('.jp-Dialog')?.innerText;
    const end = Date.now() + 3 * 3600 * 1000;
    for (let i = 0; shell.currentWidget?.context?.path !== path && !complaint() && Date.now() < end; i++) {
      if (i % 600 === 0) // again, should JupyterLab have turned back to a page that was just closed
        before.node.querySelectorAll('.jp-RenderedMarkdown a:not(.jp-InternalAnchorLink)')[number].click();
      await this.frame();
    }
    const opened = shell.currentWidget;
    this.trail.push(() => {
      document.querySelector('.jp-Dialog button')?.click();
      if (!there.has(opened)) opened.close();
      shell.activateById(before.id);
    });
    if (complaint() || opened.context?.path !== path) return complaint() || `opens ${opened.context?.path}`;
    await opened.revealed;
    await opened.content.ready; // of a page: it is there to read
    if (path.endsWith('.md') && !opened.content.node.matches('.jp-MarkdownViewer'))
      return 'opens as text to edit, not as a page to read';
    return id && !this.has(id) ? `there is no ${id} there` : '';
  },
  trail: [],
  back() { this.trail.pop()(); },

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
      const folded = cell.querySelector('.jp-Placeholder');  // its code is: no number stands beside it
      if (cell.matches('.jp-CodeCell') && !folded && !/\d/.test(cell.querySelector('.jp-InputPrompt').textContent))
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
        if (!visible && beyond > 1 && box.clientWidth > 1 && !box.closest('mjx-assistive-mml, details:not([open])'))
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

// JupyterLab's own renderer of pictures, with the alternative text that an output has in its metadata: by itself
// JupyterLab leaves it out, so that a screen reader finds a picture without a word.
//
// A prebuilt extension, by hand, so that nothing is to be built: JupyterLab loads this file, gives `init` the modules
// that it shares, and asks `get` for the renderer.
//
// Links in texts are underlined, too: JupyterLab tells them from the text by a colour that differs little from it.
(() => {
  const NAME = 'vqnotes-alt', TYPES = ['image/png', 'image/jpeg'];
  const LINKS = '.jp-RenderedHTMLCommon a[href]:not(.jp-InternalAnchorLink) { text-decoration: underline; }';
  let shared;

  async function renderer() {
    const [own] = Object.values(shared['@jupyterlab/rendermime']);
    const {RenderedImage} = (await own.get())();
    class Described extends RenderedImage {
      async render(model) {
        await super.render(model);
        const text = model.metadata[this.mimeType]?.alt, image = this.node.querySelector('img');
        if (text && image) image.alt = text;
      }
    }
    document.head.append(Object.assign(document.createElement('style'), {textContent: LINKS}));
    const rendererFactory = {safe: true, mimeTypes: TYPES, createRenderer: options => new Described(options)};
    return () => ({id: `${NAME}:renderer`, rendererFactory, rank: 90, dataType: 'string'});
  }

  (window._JUPYTERLAB ??= {})[NAME] = {init: scope => { shared = scope; }, get: renderer};
})();

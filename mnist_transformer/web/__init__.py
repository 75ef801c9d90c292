"""The demo, a page in the browser: ``app`` puts together one module per tab."""

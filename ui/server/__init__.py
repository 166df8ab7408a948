"""What answers the browser: routes, guards, cached views, the API."""

// The description of the HTTP routes, drawn by Swagger UI from /openapi.json.
"use strict";

window.addEventListener("load", () => {
  SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#docs",
    deepLinking: true,
    displayRequestDuration: true,
    validatorUrl: null, // asks nobody on the network
  });
});

SwaggerUIBundle({
  dom_id: "#swagger-ui",
  url: new URL("../openapi.json", document.currentScript.src).href,
  supportedSubmitMethods: ["get"], // a callback that is tried here would be recorded
  validatorUrl: null, // else the address of the document is told to swagger.io
});

SwaggerUIBundle({
  dom_id: "#swagger-ui",
  url: new URL("../openapi.json", document.currentScript.src).href,
  supportedSubmitMethods: ["get"], // a test callback would be recorded as a real one
  validatorUrl: null, // otherwise Swagger UI sends the URL of the document to swagger.io
});

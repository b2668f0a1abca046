declare module "@mev/client/worker?worker&url" {
  const url: string;
  export default url;
}

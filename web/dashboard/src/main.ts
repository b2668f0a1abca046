import { mount } from "svelte";
import "./app.css";
import App from "./App.svelte";
import { clock } from "./lib/clock.svelte";
import { prefs } from "./lib/prefs.svelte";
import { router } from "./lib/router.svelte";
import { session } from "./lib/session.svelte";

prefs.applyTheme();
clock.start();
router.start();
void session.start();
mount(App, { target: document.getElementById("app")! });

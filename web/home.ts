/** The way in: four doors, which keep the model that the address names. */

import { keepChoice } from "./parts/model.js";

keepChoice();

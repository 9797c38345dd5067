/** Model names for people: files and GGUF headers carry how a model was made, too. */

/** Families whose capitals are lost in lower case. */
const FAMILIES: Record<string, string> = { smollm: "SmolLM", smollm2: "SmolLM2", smollm3: "SmolLM3", tinyllama: "TinyLlama", llama: "Llama", qwen2: "Qwen2", mistral: "Mistral", vicuna: "Vicuna" };
/** Words about training runs and files: context, learning schedule, mixture, epochs, quantization. */
const MAKING = /^(\d+k|lc\d+k|mix\d+|ep\d+|step\d*|v\d+(\.\d+)*|i?q\d(_\w+)*|f16|f32|bf16|gguf)$/i;

/** "Smollm2 135M 8k Lc100K Mix1 Ep2" as "SmolLM2 135M". */
export function modelName(name: string): string {
  const words = name.split(/[\s_-]+|\.(?=[a-z])/i).filter((word) => word !== "" && !MAKING.test(word));
  if (words.length === 0) return name;
  return words.map((word) => FAMILIES[word.toLowerCase()] ?? word).join(" ");
}

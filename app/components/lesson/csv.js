// The answers as CSV: with a mark that spreadsheets know UTF-8 by, and no cell that they take for a formula.

export function csv(columns, rows, name) {
  const cell = (text) => {
    const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const lines = [columns, ...rows.map((row) => [name.trim(), ...row])];
  return `\ufeff${lines.map((line) => line.map(cell).join(",")).join("\r\n")}\r\n`;
}

// A name as part of a file's name: letters and digits of any script, and hyphens for all else.
export function stem(name) {
  return name.trim().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40);
}

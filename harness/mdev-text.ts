/** The list of mediated devices in the text of a topology, edited so that everything else stays to the byte. */
import { isMap, isPair, isScalar, isSeq, parseDocument, type Document, type Pair, type YAMLMap, type YAMLSeq } from 'yaml';

const KEY = 'mdevs';

/** Start of the key, end of the value with the comment of its last line. */
interface Span {
  readonly start: number;
  readonly end: number;
}

/**
 * @param text a topology that was read before
 * @param edit changes the list, comments of entries go with them; throws what it refuses
 */
export function editMdevs(text: string, edit: (list: MdevList) => void): string {
  const document = parseDocument(text, { intAsBigInt: true });
  edit(new MdevList(document));
  const whole = document.toString({ lineWidth: 0 });
  const crlf = text.includes('\r\n');
  const edited = (part: string): string => (crlf ? part.replaceAll(/\r?\n/g, '\r\n') : part);
  const old = spanOf(text), now = spanOf(whole);
  if (old === undefined && now === undefined) return text;
  if (old !== undefined && now !== undefined) return `${text.slice(0, old.start)}${edited(whole.slice(now.start, now.end))}${text.slice(old.end)}`;
  if ((document.contents as YAMLMap).flow === true) return edited(whole);
  return old !== undefined ? without(text, old) : withBlock(text, edited(whole.slice(now!.start, now!.end)));
}

function spanOf(text: string): Span | undefined {
  const pair = pairsOf(text).find(({ key }) => isScalar(key) && key.value === KEY);
  return pair === undefined ? undefined : { start: startOf(pair), end: (pair.value as YAMLSeq).range![1] };
}

function pairsOf(text: string): Pair[] {
  const { contents } = parseDocument(text);
  return isMap(contents) ? contents.items.filter(isPair) : [];
}

function startOf({ key }: Pair): number {
  return (key as { readonly range: readonly [number, number, number] }).range[0];
}

/** Whole lines go. */
function without(text: string, { start, end }: Span): string {
  const rest = text[end - 1] === '\n' ? end : text.indexOf('\n', end) + 1 || text.length;
  return text.slice(0, start) + text.slice(rest);
}

/** Behind `host`, before the comment of what follows. */
function withBlock(text: string, block: string): string {
  const pairs = pairsOf(text);
  const host = pairs.findIndex(({ key }) => isScalar(key) && key.value === 'host');
  const next = pairs[host + 1];
  const ended = block.endsWith('\n') ? block : `${block}\n`;
  if (host < 0 || next === undefined) return `${text}${text === '' || text.endsWith('\n') ? '' : '\n'}${ended}`;
  let at = startOf(next);
  for (;;) {
    const line = text.lastIndexOf('\n', at - 2) + 1;
    if (at === 0 || text[line] !== '#') break;
    at = line;
  }
  return text.slice(0, at) + ended + text.slice(at);
}

/** The entries under `mdevs`, by UUID. */
export class MdevList {
  private readonly document: Document;

  constructor(document: Document) {
    this.document = document;
  }

  /** The entry itself. Undefined none of that UUID is written out (it may be an alias). */
  entry(uuid: string): YAMLMap | undefined {
    const item = this.items?.items[this.indexOf(uuid)];
    return isMap(item) ? item : undefined;
  }

  add(value: object, flow: boolean): void {
    let list = this.items;
    if (list === undefined) {
      list = this.document.createNode([]);
      list.flow = false;
      this.document.set(KEY, list);
    }
    list.add(this.document.createNode(value, { flow }));
  }

  /** False when there is none. */
  remove(uuid: string): boolean {
    const index = this.indexOf(uuid), list = this.items;
    if (index < 0 || list === undefined) return false;
    list.items.splice(index, 1);
    if (list.items.length === 0) this.document.delete(KEY);
    return true;
  }

  node(value: unknown): unknown {
    return this.document.createNode(value);
  }

  private get items(): YAMLSeq | undefined {
    const list = this.document.get(KEY);
    return isSeq(list) ? list : undefined;
  }

  private indexOf(uuid: string): number {
    return this.items?.items.findIndex((item) => isMap(item) && String(item.get('uuid')).toLowerCase() === uuid) ?? -1;
  }
}

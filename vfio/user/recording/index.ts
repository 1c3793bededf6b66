/** Recordings of machines that serve clients, and their replay. */
export { BrokenRecording, FORMAT } from './format.js';
export type { InputItem, Item, RecordingFields, Stamp } from './items.js';
export { MachineRecorder, type ConnectionRecorder, type DeviceRecorder, type MachineRecorderOptions, type RecordedClock } from './recorder.js';
export { ItemReader, Recording } from './recording.js';
export { formatDifference, MachineReplay, replayRecording, type ReplayDifference, type ReplayOptions, type ReplayReport } from './replay.js';

// Where codes lie: CODE_TILE groups of 32 columns at a time, plane by plane, of each plane a vector a group.
//
// Planes 0 and 1: the bytes in the order of q4 weights; 2 and 3: in that of q8 weights. Of each CODE_GROUP 4: a word that
// is the size of a step, as an f32, and whose low half is the sum, as the upper half of an f32; 5: the sum of squares, for
// those who divide by the root of their mean.

const SCALES: u32 = 4u;
const SQUARES: u32 = 5u;

fn code_vector(plane: u32, group: u32) -> u32 {
    return (group / CODE_TILE * CODE_PLANES + plane) * CODE_TILE + group % CODE_TILE;
}
